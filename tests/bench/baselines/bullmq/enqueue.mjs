// node enqueue.mjs RUN MESSAGES ACCOUNTS: put so many messages into the queues, in bulk, as its guide says.
import { Queue } from 'bullmq';
import { connection, queueOf } from './work.mjs';

const [run, messages, accounts] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const shared = connection();
const opts = { removeOnComplete: true, attempts: 5, backoff: { type: 'exponential', delay: 1000 } };
for (let own = 0; own < accounts; own += 1) {
  const account = `account-${own}`;
  const queue = new Queue(queueOf(account), { connection: shared });
  const jobs = [];
  for (let n = own; n < messages; n += accounts) {
    jobs.push({ name: 'send', data: { id: `${run}-${n}`, account, recipient: `fan-${n}`, text: 'Hello' }, opts });
  }
  for (let from = 0; from < jobs.length; from += 1000) await queue.addBulk(jobs.slice(from, from + 1000));
}
process.exit(0);
