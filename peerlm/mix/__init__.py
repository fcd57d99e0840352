"""How parameters travel: slow weights, exchanges between pairs, and what keeps both honest."""
