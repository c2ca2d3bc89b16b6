"""From logits to tokens: filters, shared noise, the acceptance rule, prompt lookup."""
