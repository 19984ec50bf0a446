"""Where data sets come from; each source is a factory that returns a `Dataset`."""
