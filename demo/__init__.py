"""The demonstration: the whole road over real HTTP, on a real data set, with numbers that are measured."""
