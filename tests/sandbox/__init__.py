"""Tests of the local marketplace, over real sockets."""
