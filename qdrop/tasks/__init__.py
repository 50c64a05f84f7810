"""What a network is for. What a run needs of it: task.py; images on disk: images.py; a folder for each task."""
