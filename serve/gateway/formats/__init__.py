"""Other APIs spoken to engines as chat completions, and strict schemas held to whole answers."""
