"""Make the lung model for chest CT: training data, network, export to ONNX, reference and evaluation."""
