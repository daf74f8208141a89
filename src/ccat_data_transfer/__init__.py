"""CCAT Data Transfer: brings raw data packages into long-term archives and proves that they are there."""

__version__ = "0.1.0"
