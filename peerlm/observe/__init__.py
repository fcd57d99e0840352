"""What a person or a machine can see of a node; `status.schema.json` fixes `peerlm status --json`."""
