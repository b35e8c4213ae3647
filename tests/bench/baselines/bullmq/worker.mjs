// node worker.mjs PROCESSES: work the queues, in so many processes. Its guide: raise `concurrency` for jobs that wait for
// others, several workers in several processes for the rest.
import cluster from 'node:cluster';
import http from 'node:http';
import { Worker } from 'bullmq';
import { ACCOUNTS, LIMITER, connection, queueOf } from './work.mjs';

if (cluster.isPrimary) {
  for (let n = 0; n < Number(process.argv[2]); n += 1) cluster.fork();
} else {
  const upstream = new URL(`${process.env.BENCH_UPSTREAM_URL}/chats/send-message`);
  const agent = new http.Agent({ keepAlive: true, maxSockets: 50 });

  const post = (message) =>
    new Promise((resolve, reject) => {
      const body = JSON.stringify({ chat_id: message.recipient, text: message.text, media_ids: [] });
      const headers = {
        'Content-Type': 'application/json',
        'Content-Length': Buffer.byteLength(body),
        Authorization: `Bearer ${message.account}`,
        'Idempotency-Key': message.id,
      };
      const request = http.request(upstream, { method: 'POST', agent, headers, timeout: 10000 }, (answer) => {
        const read = [];
        answer.on('data', (chunk) => read.push(chunk));
        answer.on('end', () => {
          if (answer.statusCode === 200) resolve(JSON.parse(Buffer.concat(read)).id);
          else reject(new Error(`upstream said ${answer.statusCode}`));
        });
      });
      request.on('error', reject);
      request.end(body);
    });

  const shared = connection();
  for (let n = 0; n < ACCOUNTS; n += 1) {
    const options = { connection: shared, concurrency: Math.ceil(50 / ACCOUNTS), limiter: LIMITER };
    new Worker(queueOf(`account-${n}`), (job) => post(job.data), options);
  }
}
