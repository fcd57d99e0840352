"""What a node keeps: crash-safe files, snapshots of slow weights, objects, and how to fetch them."""
