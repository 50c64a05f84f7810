"""What the paper argues, measured: how flat the loss is around a quantized network, and what each part brings."""
