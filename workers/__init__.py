"""Workers: each turns a saved run into a program that runs on this host."""
