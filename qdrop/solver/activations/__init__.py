"""The values between units: kept for all images, in full precision and quantized, and drawn in batches."""
