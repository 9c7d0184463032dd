"""How long calls take, beside baselines and the machine's ceiling."""
