"""Charts that pages render as SVG: every coordinate is computed here, templates only print them."""
