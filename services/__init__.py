"""Real services on real data, written as a user of Mycelia would write them."""
