"""The neural modules that methods put into a backbone's slots. Method files get them from `methods.lazy`."""
