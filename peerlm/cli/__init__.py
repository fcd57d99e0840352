"""What a person types: one file a command or small family. It prints and asks; it decides nothing."""
