"""What nodes say to each other: the message catalogue, its encoding, and the frame of bulk chunks."""
