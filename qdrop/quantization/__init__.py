"""What is quantized, where and how: quantizers, observers, the traced graph and its plan."""
