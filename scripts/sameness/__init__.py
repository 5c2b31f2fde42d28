"""Whether two checkouts train and sample with the same numbers: what `same_numbers` is made of."""
