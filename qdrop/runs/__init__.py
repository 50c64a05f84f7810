"""The folder of a run: what it leaves behind, how it goes on after an interruption, the table of all runs."""
