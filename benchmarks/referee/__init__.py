"""What our statistics do in worlds whose truth is known: the product's own functions, judged."""
