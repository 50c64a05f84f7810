"""The images of classification, where the paper's code has them: qdrop/tasks/classification/images.py."""

from qdrop.tasks.classification.images import calibration_images, check_preparation, num_classes, validation_loader

__all__ = ["calibration_images", "check_preparation", "num_classes", "validation_loader"]
