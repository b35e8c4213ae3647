"""The upstream platforms. Each is a small adapter behind `base.Channel`, over one kept-alive `transport.Transport`."""
