"""The way of a study, from the first instance to the last acknowledgement."""
