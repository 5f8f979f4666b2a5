"""The neural modules that methods put into a backbone's slots; method files import them inside `attach` only."""
