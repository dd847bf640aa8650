"""What the demonstration starts and shows; imports nothing from the node that it watches."""
