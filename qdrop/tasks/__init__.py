"""What a network is for: its data and its figures of merit, a folder a task."""
