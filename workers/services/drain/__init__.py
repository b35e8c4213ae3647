"""What a drain holds while it runs. The loop itself is `workers.services.dispatch`.

hand      its tokens: borrowed, out, to be returned or refunded
requests  its requests that are out, and the slots reserved for more
slot      its slot among the drains of its account, on a lease
probe     its right to send one message to a resting identity
"""
