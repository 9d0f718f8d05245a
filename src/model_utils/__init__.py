"""Configuration and the environment a program runs in."""
