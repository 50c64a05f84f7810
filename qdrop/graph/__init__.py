"""Networks as graphs of ATen operators: captured, planned, quantized, cut into units."""
