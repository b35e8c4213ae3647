-- Open the gate again before its cooldown is over. KEYS[1] gate.
return redis.call('HDEL', KEYS[1], 'cooldown')
