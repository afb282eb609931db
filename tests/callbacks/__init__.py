"""Tests of the Keras callbacks."""
