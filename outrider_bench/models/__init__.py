"""Models of the loop, which replay or simulate it with other times."""
