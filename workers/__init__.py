"""RQ workers: fetch outputs into storage and notify handlers."""
