"""HTTP as upstreams need it: one exchange at a time, never repeated, and certainty about what may have left.

exchange      what a kind asks for and gets: a request in, an answer or one of three errors out
upstream      where an upstream is, and how it is reached: trust, proxy, names
transport     the exchange over a pool of kept-alive connections, with one deadline
dial          makes a connection: every address of the name, TCP, the proxy's CONNECT, TLS
addresses     the addresses of a name, looked up in a thread
proxy         which proxy leads to a host, and how to ask it
connection    one guarded connection: looks at the clock before every write
answer        reads one answer
retry_after   when an upstream wants to be asked again
reach         whether an upstream can be reached, and takes our credential
"""
