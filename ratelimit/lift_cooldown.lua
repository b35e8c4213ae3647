-- End the cooldown of a gate early. KEYS[1] gate.
return redis.call('HDEL', KEYS[1], 'cooldown')
