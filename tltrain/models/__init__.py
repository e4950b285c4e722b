"""Networks: building them, their weights, their stages and cuts."""
