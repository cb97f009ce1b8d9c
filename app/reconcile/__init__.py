"""Find what finished on Replicate and never arrived, and accept it as if it had been delivered.

The way in is `passes`; `memory` keeps what must survive between two of them. What is found goes through
`accept` like a delivery and nowhere else, and nothing is ever asked faster than `passes.Pace` allows.
"""
