"""The script that made `chest-radiograph-demo`: data, network, training and evaluation."""
