"""The process and the machine that it runs on: memory, arithmetic, threads, the console."""
