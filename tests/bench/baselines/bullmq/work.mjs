// What the queues and their workers share. BullMQ's limiter is per queue (limits per group are in its paid edition), so
// each account has a queue of its own.
import { Redis } from 'ioredis';

const url = new URL(process.env.BENCH_REDIS_URL);

export const connection = () =>
  new Redis({ path: url.pathname, db: Number(url.searchParams.get('db')), maxRetriesPerRequest: null });

export const ACCOUNTS = Number(process.env.BENCH_ACCOUNTS ?? 8);
export const queueOf = (account) => `sends-${account}`;
export const LIMITER = {
  max: Number(process.env.BENCH_LIMIT_COUNT ?? 100000),
  duration: 1000 * Number(process.env.BENCH_LIMIT_PERIOD_S ?? 1),
};
