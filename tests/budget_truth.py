"""The budget algorithms as their papers state them, one output, row by row: lists, dot products and dense solvers."""

from __future__ import annotations

import numpy as np


def gaussian(h):
    return lambda x, z: float(np.exp(-np.sum((x - z) ** 2) / (2 * h * h)))


def polynomial(x, z):
    return float((0.3 * np.dot(x, z) + 1.0) ** 2)


class Learner:
    """Support vectors with coefficients; `kernel` is a function of two rows."""

    def __init__(self, kernel, budget=None):
        self.kernel, self.budget = kernel, budget
        self.rows, self.a = [], []

    @property
    def full(self):
        return self.budget is not None and len(self.rows) == self.budget

    def column(self, x):
        return np.array([self.kernel(z, x) for z in self.rows])

    def predict(self, x):
        return sum((a * self.kernel(z, x) for a, z in zip(self.a, self.rows, strict=True)), 0.0)

    def add(self, x, a):
        self.rows.append(x)
        self.a.append(a)

    def replace(self, s, x, a):
        self.rows[s], self.a[s] = x, a

    def drop(self, s):
        del self.rows[s], self.a[s]

    def run(self, X, y, u=None):
        f = np.empty(len(X))
        for t in range(len(X)):
            f[t] = self.predict(X[t])
            self.step(X[t], float(y[t]), f[t], None if u is None else float(u[t]))
        return f


class Perceptron(Learner):
    """Rosenblatt's, with a kernel; a tie is a mistake."""

    def step(self, x, y, f, u):
        if y * f <= 0:
            self.add(x, y)


class GradientDescent(Learner):
    """Kernel gradient descent on the hinge loss."""

    lr = 0.3

    def step(self, x, y, f, u):
        if y * f < 1:
            self.add(x, self.lr * y)


class RandomBudgetPerceptron(Learner):
    """Cavallanti, Cesa-Bianchi & Gentile 2007."""

    def step(self, x, y, f, u):
        if y * f <= 0:
            if self.full:
                self.replace(int(u * self.budget), x, y)
            else:
                self.add(x, y)


class Forgetron(Learner):
    """Dekel, Shalev-Shwartz & Singer 2008, self-tuned: rows are kept from the oldest to the newest."""

    Q, M = 0.0, 0

    def step(self, x, y, f, u):
        if y * f > 0:
            return
        self.M += 1
        self.add(x, y)
        if len(self.rows) <= self.budget:
            return
        sigma, mu = abs(self.a[0]), np.sign(self.a[0]) * self.predict(self.rows[0])

        def psi(shrunk, value):
            return shrunk**2 + 2 * shrunk - 2 * shrunk * value

        room = 15 / 32 * self.M - self.Q
        share = 1.0
        if psi(sigma, mu) > room:  # psi(p sigma, p mu) = (sigma^2 - 2 sigma mu) p^2 + 2 sigma p
            roots = np.roots([sigma**2 - 2 * sigma * mu, 2 * sigma, -room])
            share = max(float(p.real) for p in roots if abs(p.imag) < 1e-12 and 0 < p.real <= 1)
        self.Q += psi(share * sigma, share * mu)
        self.a = [share * a for a in self.a]
        self.drop(0)


class PassiveAggressive(Learner):
    """BPA-S of Wang & Vucetic 2010 for any kernel; C bounds a step."""

    C = 0.7

    def costs(self, x, y, f):
        """For each support vector the new coefficient that goes with giving it up, and what that costs."""
        k, own = self.column(x), self.kernel(x, x)
        a, theirs = np.array(self.a), np.array([self.kernel(z, z) for z in self.rows])
        b = a * k / own + min(self.C, max(0.0, 1 - y * f) / own) * y
        change = (a**2 * theirs + b**2 * own - 2 * a * b * k) / 2
        return b, change + self.C * np.maximum(0, 1 - y * (f - a * k + b * own))

    def step(self, x, y, f, u):
        if y * f >= 1:
            return
        if self.full:
            b, costs = self.costs(x, y, f)
            self.replace(int(costs.argmin()), x, float(b[costs.argmin()]))
        else:
            self.add(x, min(self.C, (1 - y * f) / self.kernel(x, x)) * y)


class Projectron(Learner):
    """Orabona, Keshet & Caputo 2009; projections by a dense solve."""

    threshold, plus = 0.0, False

    def step(self, x, y, f, u):
        if y * f >= (1 if self.plus else 1e-300):
            return
        k, own = self.column(x), self.kernel(x, x)
        K = np.array([[self.kernel(p, q) for q in self.rows] for p in self.rows]).reshape(len(k), len(k))
        d = np.linalg.solve(K, k)
        seen = float(k @ d)
        distance = np.sqrt(max(own - seen, 0))
        if y * f <= 0:
            if self.full or distance <= max(self.threshold, 1e-5 * np.sqrt(own)):
                self.a = list(self.a + y * d)
            else:
                self.add(x, y)
        elif 1 - y * f > distance / self.threshold:
            lost = 1 - y * f
            self.a = list(self.a + y * min(lost / seen, 2 * (lost - distance / self.threshold) / seen, 1.0) * d)


class Bounded(Learner):
    """BOGD, Zhao, Wang, Wu, Jin & Hoi 2012, on the hinge loss."""

    lr, weight_decay, gamma = 0.4, 0.02, 1.5

    def step(self, x, y, f, u):
        left = 1 - self.lr * self.weight_decay
        if y * f >= 1:
            self.a = [left * a for a in self.a]
            return
        if self.full:
            left *= self.budget / (self.budget - 1)
            self.a = [left * a for a in self.a]
            self.replace(int(u * self.budget), x, self.lr * y)
        else:
            self.a = [left * a for a in self.a]
            self.add(x, self.lr * y)
        self.a = [a * min(1, self.lr * self.gamma / max(map(abs, self.a))) for a in self.a]


def stream(n, d, seed=0, outputs=1):
    """Rows and labels -1, 1 of a curved rule with noise."""
    print(f"{seed=}")
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    W = rng.standard_normal((d, outputs))
    Y = np.where(np.sin(2 * X @ W) + 0.3 * rng.standard_normal((n, outputs)) > 0, 1.0, -1.0)
    return X, Y
