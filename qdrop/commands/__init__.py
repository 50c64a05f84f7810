"""What `qdrop COMMAND` runs, where no room of its own has it."""
