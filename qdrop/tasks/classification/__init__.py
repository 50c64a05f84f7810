"""Images and their class: where they come from, and how often the network is right."""
