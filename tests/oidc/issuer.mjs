// A certified OpenID Connect server, for the tests: `node issuer.mjs`, from a folder that has
// oidc-provider in node_modules. Prints its port. A line on standard input rotates its keys.
import { createServer } from 'node:http';
import { generateKeyPairSync } from 'node:crypto';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';
import { join } from 'node:path';

const path = join(process.cwd(), 'node_modules/oidc-provider/lib/index.js');
const { default: Provider } = await import(pathToFileURL(path));

const AUDIENCE = 'zfast://prod';
const ALGORITHMS = { RS256: ['rsa', { modulusLength: 2048 }], ES384: ['ec', { namedCurve: 'P-384' }] };
// Shaped as each issuer shapes them: Okta's groups, AWS's namespaced tags, EKS's service account.
const CLAIMS = {
  'okta-developer': () => ({ groups: ['Everyone', 'prefect-prod-developer'] }),
  'okta-nobody': () => ({ groups: ['Everyone'] }),
  'aws-role': () => ({
    'https://sts.amazonaws.com/': {
      aws_account: '123456789012',
      principal_tags: { team: 'data' },
      request_tags: { role: 'Owner' },
    },
  }),
  'eks-pod': () => ({
    'kubernetes.io': { namespace: 'flows', serviceaccount: { name: 'worker' } },
  }),
  'bound': () => ({ cnf: { jkt: process.env.BOUND_TO } }),
};

let generation = 0;
function makeKeys() {
  generation += 1;
  return Object.entries(ALGORITHMS).map(([alg, [type, options]]) => ({
    ...generateKeyPairSync(type, options).privateKey.export({ format: 'jwk' }),
    kid: `${alg}-${generation}`, alg, use: 'sig',
  }));
}

let handler;
const server = createServer((request, response) => handler(request, response));
server.listen(+(process.env.PORT || 0), '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  function start() {
    const provider = new Provider(issuer, {
      clients: Object.keys(CLAIMS).flatMap((id) => Object.keys(ALGORITHMS).map((alg) => ({
        client_id: `${id}.${alg}`, client_secret: 'test', grant_types: ['client_credentials'],
        redirect_uris: [], response_types: [],
      }))),
      jwks: { keys: makeKeys() },
      ttl: { ClientCredentials: +(process.env.TTL || 300) },
      features: {
        devInteractions: { enabled: false },
        clientCredentials: { enabled: true },
        resourceIndicators: {
          enabled: true,
          defaultResource: () => AUDIENCE,
          useGrantedResource: () => true,
          getResourceServerInfo: (context, audience, client) => ({
            scope: 'zfast', audience, accessTokenFormat: 'jwt',
            jwt: { sign: { alg: client.clientId.split('.')[1] } },
          }),
        },
      },
      extraTokenClaims: (context, token) => CLAIMS[token.clientId.split('.')[0]](),
    });
    handler = provider.callback();
  }
  start();
  console.log(`port ${server.address().port}`);
  createInterface({ input: process.stdin }).on('line', () => { start(); console.log('rotated'); })
    .on('close', () => process.exit());
});
