"""Find what finished on Replicate and never arrived, and accept it as if it had been delivered.

The way in is `passes`; `one` asks for a single prediction, `memory` keeps what must survive between two
passes. What is found goes through `accept` like a delivery and nowhere else, and nothing is ever asked
faster than `pace` allows.
"""
