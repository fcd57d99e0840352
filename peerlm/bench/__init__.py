"""What peerlm costs, measured: real node processes without workers, beside those who do the same."""
