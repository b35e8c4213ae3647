"""What a drain holds while it runs. The loop itself is `workers.services.dispatch`.

hand      its tokens: borrowed, out, to be returned or refunded
requests  its requests that are out, and the slots reserved for more
record    the COMMIT of each turn: what has ended, and what comes next
slot      its slot among the drains of its account, on a lease
probe     its right to send one message to a resting identity
"""
