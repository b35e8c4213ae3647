"""What turns rows into work: the processes that run the use cases, and Celery, which carries wake-ups between them.

processes   what a worker and a pacer are made of, from start to a clean end
celery_app  the Celery application; celeryconfig.py configures it
pacer       publishes a drain for every account that is due
tasks       what workers run: drain an account, look up unknown outcomes
consumer    a worker's connection to Celery's broker
reconciler  repeats from PostgreSQL what Redis has forgotten, and takes up what died
presence    tells the others that this process lives
"""
